"""Open question answering with REALM (Guu et al. 2020): blocks of text, their embeddings, and who answers from them.

records.py      the texts of the blocks: read, written, looked up from a memory map
index.py        the directory with texts and embeddings, made with resume and in several processes
search.py       the nearest blocks: exactly, or with FAISS
candidates.py   a question with each of its blocks as the reader takes them, and where the answers are
open_qa.py      embedder, searcher and reader together: answers, and the losses
"""
