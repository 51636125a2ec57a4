"""``triton-gluon``: a forward for Hopper in Gluon, Triton's lower level.
"""
