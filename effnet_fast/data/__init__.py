"""Images and names of classes: what a classifier is given and what it answers with."""
