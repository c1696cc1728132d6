"""Credit estimators, one file each: estimates of how a state affects future losses."""
