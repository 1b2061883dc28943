"""How the bundled model was made: corpus, tokenizer, training, evaluation, export.

Nothing in the shipped package imports this; ``python -m recipes --help`` runs it.
"""
