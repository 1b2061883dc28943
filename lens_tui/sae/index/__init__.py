"""The feature index: one pass over a corpus, then every question about a feature answered from disk.

Reading (``read``, ``questions``) needs NumPy alone; only building (``build``) uses a device, and only through the SAE
it is given.
"""
