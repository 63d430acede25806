"""Checkpoints of TensorFlow (Google's BERT, ALBERT and REALM) to models of ours.

convert.convert("model.ckpt")          a file, read by TensorFlow itself (the extra ``tensorflow``)
convert.from_variables(arrays, ...)    what has been read
reader.read_variables("model.ckpt")    needs nothing of ours but this file, and no torch
"""
