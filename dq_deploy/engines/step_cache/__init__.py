"""Caching across steps: a graph cut behind its first block, whose deep part is skipped while the first block's residual barely moves.

``blocks`` finds the blocks of a graph, ``cut`` the values to cut at, ``parts`` writes head, body and tail, ``runner`` runs them.
"""
