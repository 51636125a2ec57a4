"""End to end: attention inside real models, trained and served; see ``workload``.

Letters: B = batch, T = tokens of a sequence, V = vocabulary, C = d_model.
"""
