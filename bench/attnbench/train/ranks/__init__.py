"""Training steps that several processes share: started by torchrun's launcher, watched, timed.

The worker stays a single process. For each contender it has torchrun's elastic launcher start
one process a rank (``agent``, ``rank``), and listens to the files that they write
(``launch``); whatever becomes of them, the worker lives on (``group``, ``blame``).
"""
