from tests.one_tokenizer import one_tokenizer

__all__ = ["one_tokenizer"]
