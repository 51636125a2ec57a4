"""Attention pictures: heat maps of the weights that each method really uses.

``weights`` has a worker find them, ``facts`` says in figures what is to be seen, ``result``
keeps both beside the records of a machine, ``paint`` and ``figure`` draw them; ``tensors``
and ``capture`` bring in q and k of a real model's layer. The page's part is in
``attnbench.report.pictures``.
"""
