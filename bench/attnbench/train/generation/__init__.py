"""Generation: models served with a KV cache, whoever attends; see ``spec``.

Letters: B = batch, T = tokens of the prompt, n = new tokens, S = T + n − 1 tokens that are
read, V = vocabulary.
"""
