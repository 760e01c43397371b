"""Metrics of pictures: each file has one kind, with the source of its formula."""
