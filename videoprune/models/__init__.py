"""Host models: the only place that knows the insides of transformers."""
