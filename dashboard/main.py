"""`panel serve dashboard` from the repository's root: the live page at /dashboard."""

from tritpress.dashboard.app import create

create().servable(title="tritpress")
