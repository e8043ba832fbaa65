"""The former path of :mod:`fssa_bayes.data.texts`."""

from fssa_bayes.data.texts import embed_texts, fingerprint, load_encoder, pool

__all__ = ["embed_texts", "fingerprint", "load_encoder", "pool"]
