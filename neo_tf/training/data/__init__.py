"""Training data: tfrecords in the original's form, read in the original's order, and made from texts."""
