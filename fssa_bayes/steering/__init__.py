"""One bundle that serves a new person: policy, preference model, guide and text encoder."""

from fssa_bayes.steering.bundle import Bundle
from fssa_bayes.steering.features import TextFeatures
from fssa_bayes.steering.person import Person
from fssa_bayes.steering.records import read_rows
from fssa_bayes.steering.train import Training, train_bundle

__all__ = ["Bundle", "Person", "TextFeatures", "Training", "read_rows", "train_bundle"]
