"""Whether MariaDB takes a login from this node. Prints JSON: `open`, or the server's error number.

A handshake of its own, because a compute has no driver: the protocol's first packet already refuses an unknown address.
"""

import json
import socket


def main(host, user, password):
    with socket.create_connection((host, 3306), timeout=10) as connection:
        packet = connection.recv(4096)
    # Length (3), sequence number (1), then 0xff and an error number (2), or the protocol's version.
    # Source: MariaDB's knowledge base, "Connection" and "ERR_Packet".
    if packet[4] == 0xFF:
        print(json.dumps(int.from_bytes(packet[5:7], "little")))
        return
    import pymysql

    try:
        pymysql.connect(host=host, user=user, password=password).close()
        print(json.dumps("open"))
    except pymysql.err.OperationalError as error:
        print(json.dumps(error.args[0]))
