"""The Hugging Face hub: what a repository holds, its files fetched and checked, their cache.

huggingface_hub does the talking and keeps the cache, so that every program of a machine shares it.
Ours is what it lacks: a file half received is kept and gone on with, by another process too, and
nothing enters the cache before its hash is right.
"""
