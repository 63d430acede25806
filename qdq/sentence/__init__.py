"""Read the directories of sentence-transformers: which modules follow the transformer, and how texts are prepared.

    modules_file    modules.json: the modules in order, and where each of them lies
    folder          SentenceFolder: prompts, longest text, similarity; all that is known without weights
    pooling         token vectors to one vector for each text
    embedder        SentenceEmbedder: the pooling and the modules behind it, with their weights
    copying         take the directory along to an output

What is read means what sentence-transformers 6 makes of the same directory. Importing the first two loads no torch.
"""
