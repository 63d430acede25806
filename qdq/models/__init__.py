"""The float reference: BERT, ALBERT, RoBERTa-PreLayerNorm, Megatron-BERT and REALM from one set of blocks."""
