// Common uses of the `openai` package for Node with a gptoss server: `node tour.mjs http://127.0.0.1:8080`.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const base = process.argv[2].replace(/\/$/, "");
const client = new OpenAI({ apiKey: "none", baseURL: `${base}/v1`, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is 47 + 38?" }];
const ANSWER = "47 + 38 = 85.";

const Heating = z.object({ room: z.enum(["attic", "cellar"]), degrees: z.number().int().min(5).max(30) });
const warm = [{ role: "user", content: "Warm the attic to 20 degrees." }];

async function chat() {
  const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
  const [choice] = answer.choices;
  assert.equal(choice.message.content, ANSWER);
  assert.equal(choice.finish_reason, "stop");
  assert.ok(choice.message.reasoning && answer.usage.completion_tokens_details.reasoning_tokens > 0);
  const longer = [...messages, choice.message, { role: "user", content: "What is 3 + 4?" }];
  const next = await client.chat.completions.create({ model, messages: longer, temperature: 0 });
  assert.ok(next.usage.prompt_tokens > answer.usage.prompt_tokens);
}

async function chatStream() {
  const runner = client.chat.completions.stream({ model, messages, temperature: 0, stream_options: { include_usage: true } });
  let text = "";
  runner.on("content", (delta) => (text += delta));
  const whole = await runner.finalChatCompletion();
  assert.equal(text, ANSWER);
  assert.equal(whole.choices[0].message.content, ANSWER);
  assert.ok((await runner.totalUsage()).completion_tokens > 0);
}

async function tools() {
  const asked = { model, messages: warm, tools: [zodFunction({ name: "set_heating", parameters: Heating })], temperature: 0 };
  const forced = { ...asked, tool_choice: "required", max_tokens: 1500 };
  const { message, finish_reason } = (await client.chat.completions.parse(forced)).choices[0];
  assert.equal(finish_reason, "tool_calls");
  const [call] = message.tool_calls;
  Heating.parse(call.function.parsed_arguments);

  // The client concatenates the ids and names of deltas, so the server may send each only once.
  const streamed = (await client.chat.completions.stream(forced).finalChatCompletion()).choices[0].message.tool_calls;
  assert.deepEqual(streamed.map(({ function: made }) => [made.name, made.arguments]), [["set_heating", call.function.arguments]]);
  assert.match(streamed[0].id, /^call_[a-z0-9]+$/);

  const said = [...warm, message, { role: "tool", tool_call_id: call.id, content: "done" }];
  const last = await client.chat.completions.create({ ...asked, messages: said, tool_choice: "none", max_tokens: 200 });
  assert.ok(!last.choices[0].message.tool_calls);
}

async function jsonSchema() {
  const asked = { model, messages: [{ role: "user", content: "Which room is cold?" }], temperature: 0, max_tokens: 1500 };
  const format = zodResponseFormat(Heating, "heating");
  const { message } = (await client.chat.completions.parse({ ...asked, response_format: format })).choices[0];
  Heating.parse(message.parsed);
}

async function logprobs() {
  const answer = await client.chat.completions.create({ model, messages, temperature: 0, logprobs: true, top_logprobs: 2 });
  const entries = answer.choices[0].logprobs.content;
  assert.equal(Buffer.from(entries.flatMap((entry) => entry.bytes)).toString(), ANSWER);
  assert.ok(entries.every((entry) => entry.logprob <= 0 && entry.top_logprobs.length === 2));
}

async function completions() {
  const asked = { model, prompt: "Once upon a time", max_tokens: 8, temperature: 0 };
  const whole = (await client.completions.create(asked)).choices[0].text;
  let text = "";
  for await (const chunk of await client.completions.create({ ...asked, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, whole);
}

async function responses() {
  const first = await client.responses.create({ model, input: messages[0].content, temperature: 0, metadata: { a: "b" } });
  assert.equal(first.status, "completed");
  assert.equal(first.output_text, ANSWER);
  assert.deepEqual(first.output.map((item) => item.type), ["reasoning", "message"]);
  assert.equal((await client.responses.retrieve(first.id)).output_text, ANSWER);

  const asked = { model, input: "What is 3 + 4?", temperature: 0, previous_response_id: first.id };
  const stream = client.responses.stream(asked);
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  const second = await stream.finalResponse();
  assert.deepEqual([kinds[0], kinds.at(-1)], ["response.created", "response.completed"]);
  assert.equal(second.previous_response_id, first.id);
  assert.ok(second.usage.input_tokens > first.usage.input_tokens);

  const limits = { temperature: 0, max_output_tokens: 1500 };
  const tool = { type: "function", name: "set_heating", parameters: z.toJSONSchema(Heating), strict: true };
  const made = await client.responses.create({ model, input: warm, tools: [tool], tool_choice: "required", ...limits });
  const call = made.output.find((item) => item.type === "function_call");
  Heating.parse(JSON.parse(call.arguments));
  const output = { type: "function_call_output", call_id: call.call_id, output: "done" };
  const input = [...warm, ...made.output, output];
  const last = await client.responses.create({ model, input, tools: [tool], tool_choice: "none", ...limits });
  assert.ok(last.output.every((item) => item.type !== "function_call"));
  const text = { format: zodTextFormat(Heating, "heating") };
  const parsed = await client.responses.parse({ model, input: "Which room is cold?", text, ...limits });
  assert.ok(parsed.status === "incomplete" || Heating.parse(parsed.output_parsed));
  await client.responses.delete(first.id);
}

async function errors() {
  const refused = (asked, status, fields) =>
    assert.rejects(client.chat.completions.create({ model, messages, ...asked }), (error) => {
      assert.ok(error instanceof OpenAI.APIError && error.requestID);
      assert.equal(error.status, status);
      for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value);
      return true;
    });
  await refused({ temperature: 3 }, 400, { param: "temperature" });
  await refused({ model: "nobody" }, 404, { code: "model_not_found" });
  await refused({ messages: [{ role: "user", content: "word ".repeat(9000) }], stream: true }, 400, { code: "context_length_exceeded" });
}

async function running() {
  const text = await (await fetch(`${base}/metrics`)).text();
  return Number(text.match(/^vllm:num_requests_running\{.*\} (.*)$/m)[1]);
}

async function cancellation() {
  const endless = { model, messages, temperature: 1, ignore_eos: true };
  let pieces = 0;
  for await (const _ of await client.chat.completions.create({ ...endless, stream: true })) {
    pieces += 1;
    if (pieces === 3) break;
  }
  const leaving = new AbortController();
  const waiting = client.chat.completions.create(endless, { signal: leaving.signal });
  setTimeout(() => leaving.abort(), 300);
  await assert.rejects(waiting, OpenAI.APIUserAbortError);
  const until = Date.now() + 20_000;
  while ((await running()) > 0) {
    assert.ok(Date.now() < until, "an answer still runs after its client disconnected");
    await sleep(50);
  }
}

for (const stop of [chat, chatStream, tools, jsonSchema, logprobs, completions, responses, errors, cancellation]) {
  await stop();
  console.log(`node: ${stop.name}`);
}
