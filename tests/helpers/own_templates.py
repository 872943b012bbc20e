"""
Chat templates written for the tests, for versions of TRL that bring none (before 1.0).

Each writes a conversation as the template of its family does, with what the tests are about and no more: how turns are
marked, what is stripped, which roles are refused, where the last turn differs from an earlier one, calls of tools.
"""

TURN = "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
# A call of a tool and its answer, as Qwen's families write them.
CALLS = (
    "{% for call in message.tool_calls %}{{ ('\n' if message.content or not loop.first else '')"
    ' + \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \''
    " + (call.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}"
)
TOOL = (
    "{% elif message.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
TOOLS = "'# Tools\n' + (tools | tojson)"
# SFTTrainer's `assistant_only_loss` needs to know which tokens the assistant wrote.
GENERATION, END_GENERATION = "{% generation %}", "{% endgeneration %}"
QWEN2_5 = (
    "{% set first = messages[0].content if messages[0].role == 'system' else"
    " 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}"
    "{{ '<|im_start|>system\n' + first }}{% if tools %}{{ '\n\n' + " + TOOLS + " }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for message in messages %}{% if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    + TURN
    + "{% elif message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    + GENERATION
    + "{% if message.content %}{{ message.content }}{% endif %}"
    + CALLS
    + "{{ '<|im_end|>\n' }}"
    + END_GENERATION
    + TOOL
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Thoughts are written with the answers after the last question only, and taken out of those before.
QWEN3 = (
    "{% if messages[0].role == 'system' or tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + ('\n\n' if tools else '') }}{% endif %}"
    "{% if tools %}{{ " + TOOLS + " }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% set last = namespace(question=0) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages %}{% if message.role == 'user' or (message.role == 'system' and not loop.first) %}"
    + TURN
    + "{% elif message.role == 'assistant' %}"
    "{% set content = message.content if message.content is string else '' %}{% set thoughts = '' %}"
    "{% if message.reasoning_content is string %}{% set thoughts = message.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > last.question and (loop.last or thoughts) %}"
    "{{ '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}{{ content }}"
    "{% endif %}" + CALLS + "{{ '<|im_end|>\n' }}" + TOOL + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ALTERNATES = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + ALTERNATES + "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else"
    " message.role) + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
COHERE = (
    "{{ bos_token }}{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}"
    "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + messages[0].content + '<|END_OF_TURN_TOKEN|>' }}{% endif %}"
    "{% for message in turns %}" + ALTERNATES + "{{ '<|START_OF_TURN_TOKEN|>' + ('<|USER_TOKEN|>' if"
    " message.role == 'user' else '<|CHATBOT_TOKEN|>') + message.content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# The last answer ends with another token than those before it.
GPTOSS = (
    "{{ '<|start|>system<|message|>You help.<|end|>' }}"
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + message.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% elif message.role == 'system' %}"
    "{{ '<|start|>developer<|message|># Instructions\n\n' + message.content + '\n\n<|end|>' }}"
    "{% else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
OWN_TEMPLATES = {
    "qwen2_5": QWEN2_5,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "cohere": COHERE,
    "phi3": PHI3,
    "gptoss": GPTOSS,
}
