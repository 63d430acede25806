"""Answer questions from a collection of texts with REALM (Guu et al. 2020).

The texts are called blocks. The modules, from the bottom to the top:

    records      the texts of the blocks: read, written, and looked up in a memory map
    embedding    the vectors of texts
    search       the nearest blocks to a question: exact, or with FAISS
    index        the directory with texts and vectors, built by several processes and resumed after an interruption
    candidates   a question paired with its blocks for the reader, and where the answers are in them
    open_qa      embedder, searcher and reader together: answers, and the losses of training
"""
