"""HTTP status and body of a GET of each URL, without credentials. Prints JSON: URL -> [status, text]."""

import json
import urllib.error
import urllib.request

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main(*urls):
    answer = {}
    for url in urls:
        try:
            with OPENER.open(url, timeout=60) as response:
                answer[url] = [response.status, response.read().decode()]
        except urllib.error.HTTPError as error:
            answer[url] = [error.code, error.read().decode()]
        except OSError as error:
            answer[url] = [0, str(error)]
    print(json.dumps(answer))
