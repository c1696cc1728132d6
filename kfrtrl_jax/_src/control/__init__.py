"""Control: environments that a network acts in, and the actor-critic that learns from them."""
