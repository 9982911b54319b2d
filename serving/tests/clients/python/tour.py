"""Common uses of the `openai` package with a gptoss server: `tour.py http://127.0.0.1:8080`.

The client runs in strict mode, except for streams of the Completions API: it validates every answer, and every event of a stream, against
its types.
"""

import asyncio
import sys
import time
import urllib.request
from typing import Literal

import openai
from pydantic import BaseModel, Field

BASE = sys.argv[1].rstrip("/")
STRICT = {"api_key": "none", "base_url": f"{BASE}/v1", "max_retries": 0, "_strict_response_validation": True}
client = openai.OpenAI(**STRICT)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "What is 47 + 38?"}]
ANSWER = "47 + 38 = 85."


class Heating(BaseModel):
    room: Literal["attic", "cellar"]
    degrees: int = Field(ge=5, le=30)


HEATING = openai.pydantic_function_tool(Heating, name="set_heating")
FLAT_HEATING = {"type": "function", **HEATING["function"]}


def models():
    model = client.models.retrieve(MODEL)
    assert model.id == MODEL and model.object == "model"


def chat():
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == ANSWER and choice.finish_reason == "stop", answer
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens > 0 and choice.message.reasoning, answer
    again = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, n=2, seed=1, user="u", metadata={"a": "b"})
    assert [choice.message.content for choice in again.choices] == [ANSWER] * 2, again


def conversation():
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    first = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    messages += [first.choices[0].message, {"role": "user", "content": "What is 3 + 4?"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.cached_tokens > 0, second.usage


def chat_stream():
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options=options))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert deltas[0].role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    # The client's accumulator requires a certain order of deltas.
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0) as stream:
        kinds = {event.type for event in stream}
        whole = stream.get_final_completion()
    assert "content.done" in kinds and whole.choices[0].message.content == ANSWER


def tools():
    messages = [{"role": "user", "content": "Warm the attic to 20 degrees."}]
    asked = {"model": MODEL, "tools": [HEATING], "temperature": 0, "max_tokens": 1500}
    choice = client.chat.completions.parse(messages=messages, tool_choice="required", **asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
    call = choice.message.tool_calls[0]
    assert call.function.name == "set_heating" and isinstance(call.function.parsed_arguments, Heating), call

    streamed = {}
    for chunk in client.chat.completions.create(messages=messages, tool_choice="required", stream=True, **asked):
        for delta in chunk.choices[0].delta.tool_calls or []:
            known = streamed.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
            known["id"] += delta.id or ""
            known["name"] += delta.function.name or ""
            known["arguments"] += delta.function.arguments or ""
    assert streamed[0]["name"] == "set_heating" and Heating.model_validate_json(streamed[0]["arguments"]), streamed
    assert streamed[0]["arguments"] == call.function.arguments and streamed[0]["id"].startswith("call_")

    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    last = client.chat.completions.create(messages=messages, tool_choice="none", **asked)
    assert last.choices[0].message.tool_calls is None and last.usage.prompt_tokens > 0
    named = {"type": "function", "function": {"name": "set_heating"}}
    forced = client.chat.completions.create(messages=QUESTION, tool_choice=named, **asked).choices[0].message.tool_calls
    assert Heating.model_validate_json(forced[0].function.arguments)


def json_schema():
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Which room is cold?"}], "temperature": 0, "max_tokens": 1500}
    choice = client.chat.completions.parse(response_format=Heating, **asked).choices[0]
    assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Heating), choice
    with client.chat.completions.stream(response_format=Heating, **asked) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == choice.message.parsed
    anything = client.chat.completions.create(response_format={"type": "json_object"}, **asked).choices[0]
    assert anything.message.content.startswith("{") or anything.finish_reason == "length", anything


def logprobs():
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    entries = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == ANSWER
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token for entry in entries)
    chunks = client.chat.completions.create(stream=True, **asked)
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


def completions():
    asked = {"model": MODEL, "prompt": ["Once upon a time", "The sky is"], "max_tokens": 8, "temperature": 0, "logprobs": 2}
    answer = client.completions.create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text
    # In strict mode the client refuses a null `finish_reason`, which all chunks except the last have, here as with OpenAI.
    lax = openai.OpenAI(**{**STRICT, "_strict_response_validation": False})
    streamed = ["", ""]
    for chunk in lax.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in answer.choices]


def responses():
    first = client.responses.create(model=MODEL, input=QUESTION[0]["content"], temperature=0, instructions="Be brief.", metadata={"a": "b"})
    assert first.status == "completed" and first.output_text == ANSWER and first.metadata == {"a": "b"}, first
    assert [item.type for item in first.output] == ["reasoning", "message"], first.output
    assert client.responses.retrieve(first.id).output_text == ANSWER
    assert [item.role for item in client.responses.input_items.list(first.id)] == ["user"]

    # The client's accumulator requires a certain order of events.
    asked = {"model": MODEL, "input": "What is 3 + 4?", "temperature": 0}
    with client.responses.stream(previous_response_id=first.id, **asked) as stream:
        kinds = [event.type for event in stream]
        second = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert second.previous_response_id == first.id and second.usage.input_tokens > first.usage.input_tokens
    events = list(client.responses.create(stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text != ""

    cut = client.responses.create(model=MODEL, input=QUESTION[0]["content"], temperature=0, max_output_tokens=4)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens", cut
    counted = client.responses.input_tokens.count(model=MODEL, input=QUESTION[0]["content"])
    assert counted.input_tokens == cut.usage.input_tokens
    client.responses.delete(first.id)
    refused(openai.NotFoundError, lambda: client.responses.retrieve(first.id))


def response_tools():
    asked = {"model": MODEL, "tools": [FLAT_HEATING], "temperature": 0, "max_output_tokens": 1500}
    items = [{"role": "user", "content": "Warm the attic to 20 degrees."}]
    made = client.responses.create(input=items, tool_choice="required", **asked)
    call = next(item for item in made.output if item.type == "function_call")
    assert Heating.model_validate_json(call.arguments), call
    with client.responses.stream(input=items, tool_choice="required", **asked) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments]

    output = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    by_items = client.responses.create(input=[*items, *made.output, output], tool_choice="none", **asked)
    by_id = client.responses.create(input=[output], previous_response_id=made.id, tool_choice="none", **asked)
    assert by_items.usage.input_tokens == by_id.usage.input_tokens and by_items.output_text == by_id.output_text
    parsed = client.responses.parse(model=MODEL, input="Which room is cold?", text_format=Heating, temperature=0, max_output_tokens=1500)
    assert parsed.status == "incomplete" or isinstance(parsed.output_parsed, Heating), parsed


def refused(kind, ask):
    try:
        ask()
    except kind as error:
        assert error.body["message"] and error.body["type"] and error.request_id, error
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def errors():
    create = client.chat.completions.create
    error = refused(openai.BadRequestError, lambda: create(model=MODEL, messages=QUESTION, temperature=3))
    assert error.param == "temperature"
    error = refused(openai.NotFoundError, lambda: create(model="nobody", messages=QUESTION))
    assert error.code == "model_not_found"
    long = [{"role": "user", "content": "word " * 9000}]
    error = refused(openai.BadRequestError, lambda: list(create(model=MODEL, messages=long, stream=True)))
    assert error.code == "context_length_exceeded"
    refused(openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input="a"))
    refused(openai.NotFoundError, lambda: client.responses.create(model=MODEL, input="a", previous_response_id="resp_none"))


def running():
    with urllib.request.urlopen(f"{BASE}/metrics") as metrics:
        lines = metrics.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))


def cancellation():
    endless = {"model": MODEL, "messages": QUESTION, "temperature": 1, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(stream=True, **endless)
    for _ in range(3):
        next(iter(stream))
    stream.close()

    async def cancel():
        async with openai.AsyncOpenAI(**STRICT) as patient:
            waiting = asyncio.create_task(patient.chat.completions.create(**endless))
            await asyncio.sleep(0.3)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert waiting.cancelled()

    asyncio.run(cancel())
    until = time.monotonic() + 20
    while running() > 0:
        assert time.monotonic() < until, "an answer still runs after its client disconnected"
        time.sleep(0.05)


def many():
    async def ask():
        async with openai.AsyncOpenAI(**STRICT) as hurried:
            create = hurried.chat.completions.create
            answers = await asyncio.gather(*(create(model=MODEL, messages=QUESTION, temperature=0) for _ in range(8)))
            assert all(answer.choices[0].message.content == ANSWER for answer in answers)

    asyncio.run(ask())


STOPS = [models, chat, conversation, chat_stream, tools, json_schema, logprobs, completions, responses, response_tools, errors, cancellation, many]
for stop in STOPS:
    stop()
    print(f"python: {stop.__name__}", flush=True)
