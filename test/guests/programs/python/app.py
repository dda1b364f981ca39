"""A Python component."""

import json
import os
import sys


class Run:
    def run(self) -> None:
        print(json.dumps({"version": sys.version_info[0], "args": sys.argv, "name": os.environ.get("NAME")}))
        with open("/etc/group") as file:
            print(file.readline().strip())
