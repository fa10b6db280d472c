"""Parts that the tabs are put together from: charts, HTML fragments, styles."""
