"""Policies against each other, measured.

``compare``     images of every policy and budget against the full cache's
``shards``      the pieces a comparison is cut into, kept on disk and gone on with
``workers``     processes that share the pieces
``metrics``     how far two images are apart
``statistics``  means and intervals
``bench``       time and memory
"""
