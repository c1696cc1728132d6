"""From any cell's step to J and its Kronecker sites, found by reading the step's jaxpr."""
