"""Ordered messages of the unmodified Python SDK, written down event by event.

With `--send`, sends numbered messages of several message groups, each group in its own thread, until
standard input says `stop-sending` or closes; with `--consume`, a push consumer works on them until it
closes. One JSON line per event:
  {"e":"ack","n":"GROUP|NUMBER","id":…}       the SDK returned a receipt
  {"e":"fail","n":…,"error":…}                the SDK raised
  {"e":"got","n":…,"id":…,"attempt":…}        the listener begins with a message
  {"e":"done","n":…,"id":…}                   the listener is done with it
`t` is seconds of the system's monotonic clock.
"""

import argparse
import json
import sys
import threading
import time

from rocketmq import (ClientConfiguration, ConsumeResult, Credentials, FilterExpression, Message,
                      MessageListener, Producer, PushConsumer)

WRITE = threading.Lock()


def record(**event):
    event["t"] = time.clock_gettime(time.CLOCK_MONOTONIC)
    with WRITE:
        print(json.dumps(event), flush=True)


class Listener(MessageListener):
    def consume(self, message):
        name = bytes(message.body).decode()
        record(e="got", n=name, id=message.message_id, attempt=message.delivery_attempt)
        time.sleep(0.002)
        record(e="done", n=name, id=message.message_id)
        return ConsumeResult.SUCCESS


def send(producer, args, group, stop):
    number = 0
    while not stop.is_set():
        message = Message()
        message.topic = args.topic
        message.message_group = group
        message.body = f"{group}|{number}".encode()
        try:
            receipt = producer.send(message)
            record(e="ack", n=f"{group}|{number}", id=receipt.message_id)
        except Exception as error:  # every failure of the SDK counts, whatever its type
            record(e="fail", n=f"{group}|{number}", error=f"{type(error).__name__}: {error}")
        number += 1
        stop.wait(args.pause_ms / 1000)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--send", default="")
    parser.add_argument("--consume", default="")
    parser.add_argument("--pause-ms", type=float, default=20)
    args = parser.parse_args()
    configuration = ClientConfiguration(args.endpoints, Credentials())
    stop = threading.Event()
    producer, consumer, threads = None, None, []
    if args.consume:
        consumer = PushConsumer(configuration, args.group, Listener(), {args.topic: FilterExpression()})
        consumer.startup()
    if args.send:
        producer = Producer(configuration, (args.topic,))
        producer.startup()
        threads = [threading.Thread(target=send, args=(producer, args, group, stop))
                   for group in args.send.split(",")]
        for thread in threads:
            thread.start()
    record(e="ready")
    for line in sys.stdin:
        if line.strip() == "stop-sending":
            stop.set()
            for thread in threads:
                thread.join()
            record(e="sending-stopped")
    stop.set()
    for thread in threads:
        thread.join()
    if consumer is not None:
        consumer.shutdown()
    if producer is not None:
        producer.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
