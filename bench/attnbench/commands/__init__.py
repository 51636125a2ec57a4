"""One module per command; ``attnbench.cli`` parses the words and calls ``main``."""
