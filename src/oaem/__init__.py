"""OA-EM initialisation for additive quantisation of language models: the paper's method and its evaluation."""
