"""What people look at, as plain data: no page and no plot is made here.

``explore``         head maps, head cards, what a head reads
``specialisation``  types of heads and how they differ
``lines``           heads by distance, what a token has read, where images are drawn by lines
``budgets``         what a cache takes and keeps, for models without their weights
"""
