"""Search: the best setting of a training run, under limits of memory and quality.

``table`` reads what is searched, ``space`` holds it, ``resolve`` makes a drawn setting
something to measure or refuses it, ``search`` draws and keeps the journal, ``findings`` says
what came out. Optuna draws; measuring is the ordinary runner's.
"""
