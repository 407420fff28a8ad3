"""What a user may do in a vhost. Prints JSON: a name -> `done` or the error's name; nothing of it harms the cluster."""

import json

import amqp

SPY = "imagegen_test_spy"


def main(where, user, password, vhost, host):
    connection = amqp.Connection(where, userid=user, password=password, virtual_host=vhost, connect_timeout=10)
    connection.connect()

    def bind(exchange, key):
        def act(channel):
            channel.queue_declare(SPY, exclusive=True)
            channel.queue_bind(SPY, exchange, key)

        return act

    theirs = "conductor"
    actions = {
        "own queue": lambda channel: channel.queue_declare(f"compute.{host}", passive=True),
        "get": lambda channel: channel.basic_get(theirs),
        "consume": lambda channel: channel.basic_consume(theirs),
        "purge": lambda channel: channel.queue_purge(theirs),
        "delete": lambda channel: channel.queue_delete(theirs),
        "take over": lambda channel: channel.queue_declare(theirs),
        "bind": bind("nova", theirs),
        "bind to all": bind("nova", "#"),
        "bind to broadcasts": bind(f"{theirs}_fanout", ""),
        "bind to traces": bind("amq.rabbitmq.trace", "#"),
    }
    outcomes = {}
    for name, act in actions.items():
        try:
            act(connection.channel())
            outcomes[name] = "done"
        except amqp.exceptions.AMQPError as error:
            outcomes[name] = type(error).__name__
    connection.close()
    print(json.dumps(outcomes))
