"""A run as files to hand on: one HTML page, its charts as SVG, its tables as CSV. Base install only.

Built from the same `views` as the page, so that both show the same figures in the same words; nothing here
imports panel, bokeh or torch.
"""
