"""From a trained model to the Triton model repository, with proof."""
