"""What posteriors of many people given a few choices are compared with, one file a rival."""
