"""`dlm-bench demo`: one trained model, the published sampler beside ours, on questions with known answers."""
