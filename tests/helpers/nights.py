"""What the suite leaves out for time: KFRTRL_NIGHT=1 runs every case."""

import os

NIGHT = "KFRTRL_NIGHT" in os.environ


def at_night(*cases):
    """These cases at night, and none by day: others that are run by day have what is asked of them."""
    return cases if NIGHT else ()


def some(cases, every=2):
    """Every so many of the cases of a property that other cases have as well; at night all of them."""
    return list(cases) if NIGHT else list(cases)[::every]
