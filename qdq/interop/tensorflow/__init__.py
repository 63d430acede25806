"""Convert checkpoints of TensorFlow: BERT, ALBERT and REALM of Google.

convert.convert("model.ckpt")          # convert a checkpoint; needs the extra ``tensorflow``
convert.from_variables(arrays, ...)    # convert variables that are in memory
reader.read_variables("model.ckpt")    # read a checkpoint with TensorFlow and without PyTorch
"""
