"""A page that asks people questions, and a chat that answers as each of them would have it."""

from fssa_bayes.serve.content import Items
from fssa_bayes.serve.interview import create_app
from fssa_bayes.serve.page import Page
from fssa_bayes.serve.people import People
from fssa_bayes.serve.security import LOOPBACK, check_token, is_loopback
from fssa_bayes.serve.store import Store, new_token
from fssa_bayes.serve.study import Study

__all__ = [
    "LOOPBACK",
    "Items",
    "Page",
    "People",
    "Store",
    "Study",
    "check_token",
    "create_app",
    "is_loopback",
    "new_token",
]
