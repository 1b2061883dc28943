"""Generation: prefill, kept prefixes, lock step, batches, stops and sampling."""
