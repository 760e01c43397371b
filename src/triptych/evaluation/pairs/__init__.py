"""`evaluate --pairs`: the set, the made pictures, what is measured of each item, and the report."""
