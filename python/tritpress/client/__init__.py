"""A client of the dashboard's API (docs/api.md): see, follow and steer runs, and push those of one's own.

    from tritpress.client import Client

    client = Client("http://127.0.0.1:5006/dashboard?token=...")  # as `tritpress dashboard` printed it
    for event in client.follow(client.start("model-dir", {"planes": 2})):
        print(event["type"])

    with client.push("my controller") as pusher:  # a run that is worked on here shows up there
        pusher.emit("metric", name="loss", value=0.5)

Needs the base install alone, neither torch nor panel.
"""

from tritpress.client.client import Client
from tritpress.client.http import ClientError
from tritpress.client.push import Pusher, progress_callback

__all__ = ["Client", "ClientError", "Pusher", "progress_callback"]
