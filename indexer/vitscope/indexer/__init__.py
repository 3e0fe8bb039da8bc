"""From pictures to a published index: decode, capture, reduce, write, merge, publish."""
