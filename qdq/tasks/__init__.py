"""Evaluate models on tasks: float and quantized checkpoints, exported files, engines, and runners of the user.

    evaluate               evaluate(): metrics, confidence intervals, and the comparison with a baseline
    model_under_test       opens what is evaluated: a runner with its configuration and tokenizer
    evaluator              runs one model on one data set, for every task
    evaluation_settings    how to evaluate
    example_table          a few numbers of every example; metrics are computed of them
    metrics                the metrics, with weights for the bootstrap
    bootstrap, drop        confidence intervals; the largest drop that is accepted
    embeddings, pooling    one vector for each text

Every other module is a task of the same name, with a function ``score(evaluator)``. (``squad`` holds SQuAD's rules.)
"""

__all__: list[str] = []
