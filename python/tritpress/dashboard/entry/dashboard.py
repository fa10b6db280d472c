"""`panel serve` runs this for every page; the URL is /dashboard."""

from tritpress.dashboard.app import create

create().servable(title="tritpress")
