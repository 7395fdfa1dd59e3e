"""Delayed messages and recall with the unmodified Python SDK.

Sends messages to be delivered in a few seconds and recalls some. Prints `sent` when all are stored, so
that a fault can be brought in, and then one JSON object: how late each came, and what should not have
come. Exit status 0 only when every message that was not recalled came once and none early.
"""

import argparse
import json
import sys
import time

from rocketmq import (ClientConfiguration, Credentials, FilterExpression, Message, Producer,
                      SimpleConsumer)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--messages", type=int, default=60)
    parser.add_argument("--from-ms", type=int, default=4000)
    parser.add_argument("--deadline-s", type=float, default=60)
    return parser.parse_args()


def main():
    args = arguments()
    configuration = ClientConfiguration(args.endpoints, Credentials())
    producer = Producer(configuration, (args.topic,))
    producer.startup()
    due = {}
    recalled = set()
    failures = []
    for number in range(args.messages):
        message = Message()
        message.topic = args.topic
        message.body = f"body-{number}".encode()
        at_ms = int(time.time() * 1000) + args.from_ms + (number % 10) * 200
        # This SDK takes seconds.
        message.delivery_timestamp = at_ms // 1000
        receipt = producer.send(message)
        if not receipt.recall_handle:
            failures.append(f"{number}: no recall handle")
            continue
        due[receipt.message_id] = at_ms // 1000 * 1000
        if number % 3 == 0:
            answered = producer.recall_message(args.topic, receipt.recall_handle)
            again = producer.recall_message(args.topic, receipt.recall_handle)
            if answered != receipt.message_id or again != receipt.message_id:
                failures.append(f"{number}: recall answered {answered} and {again}")
            recalled.add(receipt.message_id)
    past = Message()
    past.topic = args.topic
    past.body = b"past"
    past.delivery_timestamp = int(time.time()) - 10
    past_id = producer.send(past).message_id
    due[past_id] = 0
    try:
        producer.recall_message(args.topic, "no handle")
        failures.append("a recall of nothing was answered OK")
    except Exception:  # the SDK raises its own types for each code
        pass
    print("sent", flush=True)

    consumer = SimpleConsumer(configuration, args.group, {args.topic: FilterExpression()}, await_duration=2)
    consumer.startup()
    expected = set(due) - recalled
    arrived = {}
    repeated = []
    errors = []
    deadline = time.monotonic() + args.deadline_s
    quiet_until = None
    while time.monotonic() < deadline:
        try:
            messages = consumer.receive(16, 30)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
            time.sleep(0.2)
            continue
        now_ms = time.time() * 1000
        for message in messages:
            if message.message_id in arrived:
                repeated.append(message.message_id)
            arrived[message.message_id] = now_ms
            try:
                consumer.ack(message)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
        if set(arrived) >= expected:
            # Long enough for a recalled one to turn up.
            last_due = max(due.values()) / 1000
            quiet_until = quiet_until or max(time.time(), last_due) + 2
            if time.time() >= quiet_until:
                break
    late_ms = sorted(arrived[key] - due[key] for key in expected & set(arrived) if due[key])
    early = [late for late in late_ms if late < 0]
    unexpected = sorted(set(arrived) - expected)
    result = {
        "sent": len(due), "recalled": len(recalled), "arrived": len(arrived),
        "missing": sorted(expected - set(arrived)), "unexpected": unexpected, "early": early,
        "late_ms_median": round(late_ms[len(late_ms) // 2]) if late_ms else None,
        "late_ms_max": round(late_ms[-1]) if late_ms else None,
        "repeated": repeated, "failures": failures, "errors": errors[-3:],
    }
    print(json.dumps(result), flush=True)
    consumer.shutdown()
    producer.shutdown()
    fine = not (result["missing"] or unexpected or early or failures) and late_ms
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
