"""Text and data sets in, batches of token ids out; shared by calibration, evaluation, verification and training.

The way of a row, and the module of each step:

    source      a file, a saved data set, an iterable or random letters, opened as a stream of rows
                (formats knows the readers: text_files, table, conll, json_file and arrow; opening unpacks files, and
                in_memory takes what is in memory)
    records     one row as its reader found it, and the problems and notes of readers
    columns     which columns a task reads: the user's choice, or the usual names of public data sets
    labels      the labels of a head, or those that a new head for a data set needs (label_survey looks at the whole
                column, label_reading decides how its values become ids, label_values knows single values)
    rows        one record -> one example (the kinds of examples are in example_types)
    examples    read_examples(): the stream of examples of a task
    tokenizer   the tokenizer of a checkpoint with its special ids (tokenizer_loading reads tokenizer.json, vocabularies
                builds it from old files, tokenizer_classes says which classes of transformers are followed)
    features    examples -> token ids and targets (featurizer chooses the function for a task)
    batches     make_batches(): padded tensors, rows of similar length together

``text`` is the short way for plain sentences: read_samples() and encode_batches().
"""
