"""Whom RabbitMQ lets in where. Takes [address, user, password, vhost] rows; prints the outcome of each as JSON."""

import json

import amqp


def main(rows):
    outcomes = []
    for where, user, password, vhost in rows:
        try:
            connection = amqp.Connection(where, userid=user, password=password, virtual_host=vhost, connect_timeout=10)
            connection.connect()
            connection.close()
            outcomes.append("open")
        except (OSError, amqp.exceptions.AMQPError) as error:
            outcomes.append(type(error).__name__)
    print(json.dumps(outcomes))
